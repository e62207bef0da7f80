"""Make one figure or table: python -m scripts.exhibit results/configs/exhibits/<study>.<exhibit>-<digest>.json"""

from scalpel.exhibits.render import main

if __name__ == "__main__":
    main()
