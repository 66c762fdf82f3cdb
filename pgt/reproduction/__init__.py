"""From runs to tables and figures. No torch."""
