"""What is written: whole or not at all, kept under its digest, or deflated."""
