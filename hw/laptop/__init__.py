"""The laptop of the installer: any system that has Python and pyserial. Nothing here knows Linux from Windows."""
