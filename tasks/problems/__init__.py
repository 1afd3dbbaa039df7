"""What a model is for. Only this package knows classification from language modelling."""
