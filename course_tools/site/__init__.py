"""The course's web site: its pages, what Sphinx lacks, and a browser that looks at it."""
