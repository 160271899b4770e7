"""What width pruning costs beside other libraries, and how costs grow with the model: a question a module.

``python -m benchmarks`` asks what is still open; README.md has the answers in a table.
"""
