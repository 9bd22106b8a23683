"""The lab's hosts are there for every test that asks for them."""

pytest_plugins = ["tests.lab.fixtures"]
