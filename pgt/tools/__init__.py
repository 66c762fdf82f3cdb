"""Tools beside training: doctor, export, validation of weights, speed probe."""
