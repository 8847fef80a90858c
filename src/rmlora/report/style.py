"""The look of a report's page: the reader's light or dark, tables that become cards on a phone, nothing fetched."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a636e; --page: #ffffff; --card: #f6f7f9; --line: #d8dde3;
  --good: #0b7a4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a3adb8; --page: #14171a; --card: #1d2126;
  --line: #363d45; --good: #4cc38a; --bad: #ff8a80; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem clamp(.8rem, 3vw, 2.5rem) 4rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.6rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
li { margin: .35rem 0; }
.strong { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: 1.2rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .85rem; padding: .5rem 0; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { overflow-wrap: normal; border-bottom: 2px solid var(--ink); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; min-width: 9rem; }
.scroll { overflow-x: auto; }
td > span { white-space: nowrap; }
td.long > span { white-space: normal; }
td.long { text-align: left; min-width: 12rem; }
.better { color: var(--good); font-weight: 600; }
.worse { color: var(--bad); font-weight: 600; }
.figures { display: grid; gap: 1rem; margin: 1.2rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; margin: 0 auto; color: var(--ink); }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .5rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--soft); padding: .3rem 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; font-size: .82rem;
  overflow-x: auto; white-space: pre-wrap; }
.what { color: var(--soft); }
@media (max-width: 44rem) {
  table, tbody, tr, td, tbody th, caption { display: block; width: 100%; }
  thead { position: absolute; left: -10000px; }
  tr { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem;
    margin: .6rem 0; }
  tbody th, td, th:first-child { text-align: left; border: 0; padding: .12rem 0; }
  tbody th { font-size: 1rem; padding-bottom: .25rem; }
  td { display: flex; justify-content: space-between; gap: 1rem; }
  td::before { content: attr(data-label); color: var(--soft); font-weight: 400; flex: 0 0 40%; }
  td > span { text-align: right; white-space: normal; }
  td.long { min-width: 0; }
  td.long > span { text-align: left; flex: 1; }
}
@media print { details > * { display: block; } figure { break-inside: avoid; } }
"""
