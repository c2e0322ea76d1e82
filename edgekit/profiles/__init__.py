"""Device profiles: measured on a board, corrected by its races, compared, and used where no board is at hand."""
