"""Release: take a model elsewhere, with a card that says what it is and what else could be shipped."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
