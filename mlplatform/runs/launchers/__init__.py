"""Where runs run: on this machine, or as jobs of a cluster."""
