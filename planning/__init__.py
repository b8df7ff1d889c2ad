"""Installed as sam3dnet.planning; see setup.py."""

if __name__ != "sam3dnet.planning":
    raise ImportError(
        f"the folder planning/ was imported as {__name__!r}; import sam3dnet.planning (pip install . puts it there), "
        "so that no module exists twice"
    )
