"""What only lessons use: checks of exercises, claims, drawings, and the policies and records of lesson 06."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
