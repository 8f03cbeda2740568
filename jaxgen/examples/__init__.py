"""Complete programs that a user would write; `jaxgen examples` lists and copies them.

They use the public face alone, take seconds on two cores, and are run by the tests.
"""
