"""Stand-in until the branch replay is merged."""


class Replay:
    pass
