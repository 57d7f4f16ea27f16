"""What is planted and asked; one file per needle task, found by its name."""
