"""The model card, computed from configurations and the records that others wrote."""
