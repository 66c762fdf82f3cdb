"""A command line's jobs: checked, started, on this machine or as one of torchrun's or srun's ranks."""
