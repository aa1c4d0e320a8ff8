from pathlib import Path
def test_x(trained): print(list(trained.rglob("*")))
