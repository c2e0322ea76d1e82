"""What people read: one HTML page and one terminal screen, both made from a `DeployResult`."""
