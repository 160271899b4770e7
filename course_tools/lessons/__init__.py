"""From a lesson's source to its notebooks: how it is written, built, run and held to what it says."""
