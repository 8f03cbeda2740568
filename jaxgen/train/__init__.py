"""Training: state, optimizer, schedule, losses, the step and the loop.

The package can also be called: `jaxgen.train(what, *overrides, out=, minutes=, force=, step=,
**sections)` does what `jaxgen train` does and returns the folder of the run, for `jaxgen.open`.
`what`: text files or folders, a .yaml file, a run, or a config as a mapping, which needs out=;
overrides: "section.key=value"; sections: model={"layers": 6}, train={"steps": 500}.
`help(jaxgen.cli.notebook.train)` says all of it.
"""
