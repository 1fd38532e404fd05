# The quickstart: each command is printed, then run, exactly as you would type it.
set -e

run() {
    printf '\n$ %s\n' "$1"
    eval "$1"
}

run "python -m data_pipeline configs/data/quickstart.py"
run "torchrun --standalone --nproc-per-node 1 train.py configs/quickstart.py"
run "python -m evaluation runs/quickstart"
run "python sample.py --run runs/quickstart --max-new-tokens 80 --prompt 'The history of'"
run "python sample.py --run runs/quickstart --max-new-tokens 80 --prompt 'def '"

cat <<'END'

Report:  runs/quickstart/report.html (open it in a browser)
Next:    source .venv/bin/activate
         python sample.py --prompt 'Your own words'
         python train.py configs/quickstart.py --name longer --budget.minutes 30
         python train.py configs/mini.py --dry-run
END
