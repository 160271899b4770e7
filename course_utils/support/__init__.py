"""What everything stands on: profiles and seeds, checks of arguments, files, records, statistics, the plots' style."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
