"""Lessons at full size without a GPU and without the hub: a pretended card, random models, and what lay on the card."""
