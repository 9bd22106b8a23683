"""`python -m ugro_tasks.agent FOLDER`: be the agent of an experiments folder."""

from .main import main

main()
