"""What users may rely on, whatever module it is made of."""
