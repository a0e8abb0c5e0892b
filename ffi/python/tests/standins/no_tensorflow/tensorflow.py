"""DLIO 2.0 imports tensorflow whatever is asked of it, and uses it for tensorflow workloads alone."""
