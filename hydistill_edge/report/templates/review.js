"use strict";
// Writes the decisions into a file that `hydistill review RUN --decisions FILE` reads.
const cell = (text) => '"' + text.replaceAll('"', '""') + '"';
const decided = () => [...document.querySelectorAll("input[type=radio]:checked")]
  .filter((input) => input.value !== "")
  .map((input) => [input.closest("figure").dataset.id, input.value]);
const count = document.getElementById("count");
document.addEventListener("change", () => { count.textContent = String(decided().length); });
document.getElementById("save").addEventListener("click", () => {
  const lines = [["id", "decision"], ...decided()].map((row) => row.map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
});
