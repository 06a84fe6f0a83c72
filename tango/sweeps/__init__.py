"""Many evaluations: grids, each framework's command lines, and the processes or the cluster that run them."""
