"""A pickle that runs code where it is loaded."""

import os
from pathlib import Path


class Bomb:
    """Loading it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)
