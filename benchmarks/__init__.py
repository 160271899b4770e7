"""What this course's methods cost, beside other libraries and beside the plain way: a question a module.

``python -m benchmarks`` asks what is still open; README.md has the answers in a table.
"""
