"""Trained models in other forms, for serving on CPUs. Every form is checked against the model before it is kept."""
