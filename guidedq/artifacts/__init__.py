"""What flows between the stages: frozen values that can be saved, loaded and hashed."""
