"""Whether a run shows what its lesson says: the same checks for a participant's notebook and for recorded machines."""
