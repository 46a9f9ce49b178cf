"""The centre's end of the uplink: takes in, acknowledges, checks, keeps, raises alarms, answers questions."""
