/* Tables that are sorted by a click on a column: numbers in descending order first, missing last. */
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });

  const sort = (header) => {
    const column = header.cellIndex;
    const rows = [...table.tBodies[0].rows].map((row) => {
      const { dataset, textContent } = row.cells[column];
      return { row, number: "value" in dataset ? Number(dataset.value) : null, text: textContent };
    });
    const numeric = rows.some(({ number }) => number !== null);
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      if (!numeric) return sign * collator.compare(a.text, b.text);
      if (a.number === null || b.number === null) return (a.number === null) - (b.number === null);
      return sign * (a.number - b.number);
    });
    for (const each of headers) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    table.tBodies[0].append(...rows.map(({ row }) => row));
  };
  for (const header of headers)
    header.querySelector("button").addEventListener("click", () => sort(header));
}
