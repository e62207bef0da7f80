"""Write a study's report: python -m scripts.report results/configs/exhibits/<study>.report-<digest>.json"""

from scalpel.report.build import main

if __name__ == "__main__":
    main()
