"""What a model is: its graph of operators, its sites, and the program that runs it."""
