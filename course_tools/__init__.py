"""What makes, runs, checks and publishes the course. It needs a clone and the extra "course"; no wheel holds it."""
