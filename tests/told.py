"""What results tell of themselves, made comparable."""


def but_for_the_time(scores):
    """What scores tell as a dict, but for when they were made."""
    return {key: value for key, value in scores.to_dict().items() if key != "time"}
