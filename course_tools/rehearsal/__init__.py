"""Lessons at full size without a GPU and without the hub: a pretended card, a pretended hub, and what they found."""
