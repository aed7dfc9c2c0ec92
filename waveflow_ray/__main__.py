"""``python -m waveflow_ray`` is the command `waveflow`, of the code that is found first."""

from waveflow_ray.cli import main

if __name__ == "__main__":
    main()
