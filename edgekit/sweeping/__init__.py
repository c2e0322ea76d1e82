"""A grid of deployments: what is declared, what each cell is, and how cells are run here or on a cluster."""
