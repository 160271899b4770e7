"""Helpers of the course "Pruning LLMs", in ten packages, each of which imports only from those before it.

``support``, ``text``, ``models``, ``pruning``, ``measuring``, ``bias``, ``healing``, ``release``, ``compress``,
``lessons``: each has a door that names what is public, as in ``from course_utils.pruning import prune_neurons``.
"""

from course_utils.moved import redirect_old_names

__version__ = "0.2.0"

redirect_old_names()
