"""The course's web site: its pages, what Sphinx lacks, and what moves on them."""
