"""On the path of a process, makes jobfleet impossible to import there, wherever it is installed."""

import sys


class Hidden:
    """Finds nothing under the hidden name."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Refuse the name."""
        if name.partition(".")[0] == "jobfleet":
            raise ModuleNotFoundError(f"No module named {name!r}, on purpose", name=name)


sys.meta_path.insert(0, Hidden)
