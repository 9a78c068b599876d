"""A step that no time is enough for."""

import time

if __name__ == "__main__":
    time.sleep(100)
