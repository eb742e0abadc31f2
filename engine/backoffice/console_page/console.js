// The control room: reads sales with the session's cookie and shows their units. It changes nothing.
"use strict";

const SALE_INTERVAL_MS = 1000;
const LIST_INTERVAL_MS = 10000;
const REQUEST_LIMIT_MS = 10000;
const STALE_AFTER_MS = 5000;
const ROWS_SHOWN_MAX = 500; // a browser lays out a few hundred rows a second without a hitch, not twenty thousand
const SALES_PER_PAGE = 100;

const TEXTS = {
  en: {
    language: "中文", sales: "Sales", moreSales: "More", chooseSale: "Choose a sale.", noSales: "There is no sale yet.",
    filter: "Filter SKUs", signOut: "Sign out",
    status: { draft: "draft", open: "open", paused: "paused", closed: "closed", frozen: "frozen" },
    sequence: "Sequence", version: "Version", asOf: "As of", opensAt: "Opens", closesAt: "Closes", hold: "Hold",
    seconds: (n) => `${n} s`,
    allocated: "Allocated", available: "Available", held: "Held", settled: "Settled", withheld: "Withheld",
    pools: "By pool", price: "Price", shared: "shared", sku: "SKU", colour: "Colour", size: "Size", style: "Style",
    fresh: (s) => `Figures ${s} s old`, waiting: "Loading …",
    shown: (n, all) => `${n} of ${all} SKUs are shown; filter to see others.`,
    signedOut: "You are signed out, or the key was revoked. Reload the page to sign in.",
    forbidden: "This key may not read sales.",
    gone: "This sale is not there any more.",
    unavailable: (detail) => `The figures cannot be told at this moment: ${detail} Trying again.`,
    lost: "The connection to the back office is lost. The figures below are old. Trying again.",
    failed: (status, detail) => `The back office answered ${status}. ${detail}`,
    incomplete: "PostgreSQL is away: sales that ended long ago are missing from this list.",
    frozen: (why) => `This sale is being reconciled: ${why}`,
  },
  zh: {
    language: "English", sales: "场次", moreSales: "更多", chooseSale: "请选择一个场次。", noSales: "还没有场次。",
    filter: "筛选 SKU", signOut: "退出",
    status: { draft: "草稿", open: "开售中", paused: "已暂停", closed: "已结束", frozen: "对账冻结" },
    sequence: "序号", version: "版本", asOf: "数据时间", opensAt: "开售时间", closesAt: "结束时间", hold: "占用时限",
    seconds: (n) => `${n} 秒`,
    allocated: "分配", available: "可售", held: "占用", settled: "已付", withheld: "保留",
    pools: "各库存池", price: "价格", shared: "共享", sku: "SKU", colour: "颜色", size: "尺码", style: "款式",
    fresh: (s) => `数据为 ${s} 秒前`, waiting: "加载中……",
    shown: (n, all) => `共 ${all} 个 SKU，显示 ${n} 个；可用筛选查看其他。`,
    signedOut: "已退出登录，或密钥已被吊销。请刷新页面重新登录。",
    forbidden: "此密钥无权查看场次。",
    gone: "该场次已不存在。",
    unavailable: (detail) => `暂时无法读取数据：${detail} 正在重试。`,
    lost: "与后台的连接已断开，下方数据已过时，正在重试。",
    failed: (status, detail) => `后台返回 ${status}。${detail}`,
    incomplete: "PostgreSQL 暂不可用：列表中缺少早已结束的场次。",
    frozen: (why) => `该场次正在对账：${why}`,
  },
};

const state = {
  language: localStorage.getItem("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"),
  sales: [], nextCursor: "", hasMore: false, pages: 1, complete: true,
  saleId: new URLSearchParams(location.hash.slice(1)).get("sale"),
  sale: null, readAt: 0, saleProblem: null, listProblem: null, signedOut: false, shown: "",
};

const text = () => TEXTS[state.language];
const byId = (id) => document.getElementById(id);

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// --- reading --------------------------------------------------------------------------------------------------------

// The document at `path`, or {problem}. Never throws.
async function read(path) {
  let response;
  try {
    response = await fetch(path, {
      headers: { Accept: "application/json" }, cache: "no-store", signal: AbortSignal.timeout(REQUEST_LIMIT_MS),
    });
  } catch {
    return { problem: { status: 0, detail: "" } };
  }
  try {
    const document = await response.json();
    if (response.ok) return { document };
    return { problem: { status: response.status, code: document.code, detail: document.detail || "" } };
  } catch {
    return { problem: { status: response.ok ? 0 : response.status, detail: "" } };
  }
}

async function readSales() {
  const sales = [];
  let after = "", hasMore = true, complete = true;
  for (let page = 0; page < state.pages && hasMore; page++) {
    const query = new URLSearchParams({ after, limit: String(SALES_PER_PAGE) });
    const { document, problem } = await read(`/ops/v1/sales?${query}`);
    if (problem) { note("listProblem", problem); return; }
    // the list needs a line of each; a sale's units are read by themselves
    for (const sale of document.sales) {
      sales.push({ sale_id: sale.sale_id, title: sale.title, status: sale.status, frozen: sale.frozen });
    }
    after = document.next_cursor;
    hasMore = document.has_more;
    complete = complete && document.complete;
  }
  state.sales = sales;
  state.hasMore = hasMore;
  state.complete = complete;
  note("listProblem", null);
  if (state.saleId === null && sales.length > 0) choose((sales.find((sale) => sale.status === "open") || sales[0]).sale_id);
}

async function readSale() {
  const saleId = state.saleId;
  if (saleId === null) return;
  const { document, problem } = await read(`/ops/v1/sales/${encodeURIComponent(saleId)}`);
  if (saleId !== state.saleId) return; // another sale was chosen meanwhile
  if (document) { state.sale = document; state.readAt = Date.now(); }
  note("saleProblem", problem || null);
}

function note(name, problem) {
  state[name] = problem;
  if (problem && problem.status === 401) state.signedOut = true;
}

// Reads again and again, one after the other, so that a slow answer is not asked for twice.
async function repeat(readOnce, intervalMs, showOnce) {
  while (!state.signedOut) {
    await readOnce();
    showOnce();
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 5 * intervalMs : intervalMs));
  }
}

// --- showing --------------------------------------------------------------------------------------------------------

function message() {
  const problem = state.saleProblem || state.listProblem;
  if (state.signedOut) return text().signedOut;
  if (problem) {
    if (problem.status === 0) return text().lost;
    if (problem.status === 403) return text().forbidden;
    if (problem.code === "SALE_NOT_FOUND") return text().gone;
    if (problem.status === 503) return text().unavailable(`${problem.code} – ${problem.detail}`);
    return text().failed(problem.status, problem.detail);
  }
  if (state.sale && state.sale.frozen) return text().frozen(state.sale.frozen);
  return state.complete ? "" : text().incomplete;
}

function showMessage() {
  const words = message();
  if (byId("message").textContent !== words) byId("message").textContent = words;
  byId("message").hidden = words === "";
}

function showFreshness() {
  const element = byId("freshness");
  const ageMs = state.readAt ? Date.now() - state.readAt : null;
  element.textContent = state.saleId === null ? "" : ageMs === null ? text().waiting : text().fresh(Math.round(ageMs / 1000));
  element.classList.toggle("stale", ageMs !== null && ageMs > STALE_AFTER_MS);
}

function statusWord(status) {
  return make("span", { class: `status ${status}`, text: text().status[status] || status });
}

function showSales() {
  const focused = document.activeElement && document.activeElement.dataset.sale;
  const items = state.sales.map((sale) => {
    const status = sale.frozen ? "frozen" : sale.status;
    const button = make("button", { type: "button", "aria-current": String(sale.sale_id === state.saleId), "data-sale": sale.sale_id },
      make("span", { text: sale.title || sale.sale_id }), statusWord(status), make("small", { text: sale.sale_id }));
    button.addEventListener("click", () => choose(sale.sale_id));
    return make("li", {}, button);
  });
  byId("sales").replaceChildren(...items);
  if (focused) [...byId("sales").querySelectorAll("button")].find((button) => button.dataset.sale === focused)?.focus();
  byId("more-sales").hidden = !state.hasMore;
  byId("empty").textContent = state.sales.length === 0 && !state.listProblem ? text().noSales : text().chooseSale;
  showMessage();
}

function pairs(entries) {
  return entries.map(([name, value]) => make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
}

function money(minor, currency) {
  const style = new Intl.NumberFormat(state.language, { style: "currency", currency });
  return style.format(minor / 10 ** style.resolvedOptions().maximumFractionDigits);
}

function moment(at) {
  return at ? new Date(at).toLocaleString(state.language === "zh" ? "zh-CN" : undefined) : "–";
}

function poolWords(entry) {
  return Object.entries(entry.pools)
    .map(([pool, units]) => `${pool === "shared" ? text().shared : pool} ${units}`).join(" · ");
}

function showSale() {
  const sale = state.sale;
  if (sale === null) state.shown = "";
  byId("sale").hidden = sale === null;
  byId("empty").hidden = sale !== null;
  showMessage();
  showFreshness();
  if (sale === null) return;
  byId("sale-title").textContent = sale.title || sale.sale_id;
  byId("sale-status").replaceChildren(statusWord(sale.frozen ? "frozen" : sale.status));
  byId("facts").replaceChildren(...pairs([
    [text().sequence, sale.sequence], [text().version, sale.version], [text().asOf, moment(sale.as_of)],
    [text().hold, text().seconds(sale.hold_seconds)], [text().opensAt, moment(sale.opens_at)], [text().closesAt, moment(sale.closes_at)],
    ...Object.entries(sale.labels || {}),
  ]));
  const columns = ["allocated", "available", "held", "settled", "withheld"];
  byId("totals").replaceChildren(...pairs(columns.map((column) =>
    [text()[column], sale.skus.reduce((sum, entry) => sum + entry[column], 0)])));
  const shown = JSON.stringify([sale.sale_id, sale.sequence, sale.version, state.language, byId("filter").value]);
  if (shown !== state.shown) showSkus(sale); // as it is, a table can be read, selected and scrolled in peace
  state.shown = shown;
}

function showSkus(sale) {
  byId("filter-row").hidden = sale.skus.length <= ROWS_SHOWN_MAX;
  const wanted = byId("filter").value.trim().toLowerCase();
  const found = byId("filter-row").hidden || wanted === "" ? sale.skus : sale.skus.filter((entry) =>
    [entry.sku, entry.style, entry.colour, entry.size].some((part) => (part || "").toLowerCase().includes(wanted)));
  const shown = found.slice(0, ROWS_SHOWN_MAX);
  byId("shortened").hidden = shown.length === found.length;
  byId("shortened").textContent = text().shown(shown.length, found.length);
  const styles = new Map();
  for (const entry of shown) styles.set(entry.style, [...(styles.get(entry.style) || []), entry]);
  byId("styles").replaceChildren(...[...styles].flatMap(([style, entries]) =>
    [make("h3", { text: style }), isGrid(entries) ? grid(entries) : table(sale, entries)]));
}

// A style is a grid if every SKU has a place of its own in it.
function isGrid(entries) {
  const places = new Set(entries.filter((entry) => entry.colour && entry.size).map((entry) => JSON.stringify([entry.colour, entry.size])));
  return places.size === entries.length;
}

function grid(entries) {
  const colours = [...new Set(entries.map((entry) => entry.colour))];
  const sizes = [...new Set(entries.map((entry) => entry.size))];
  const at = new Map(entries.map((entry) => [JSON.stringify([entry.colour, entry.size]), entry]));
  const head = make("tr", {}, make("th", { scope: "col", text: `${text().colour} × ${text().size}` }),
    ...sizes.map((size) => make("th", { scope: "col", text: size })));
  const rows = colours.map((colour) => make("tr", {}, make("th", { scope: "row", text: colour }),
    ...sizes.map((size) => cell(at.get(JSON.stringify([colour, size]))))));
  return make("table", { class: "grid" }, make("thead", {}, head), make("tbody", {}, ...rows));
}

function cell(entry) {
  if (!entry) return make("td", { class: "none" });
  const line = (name) => make("small", { text: `${text()[name]} ${entry[name]}` });
  return make("td", { class: entry.available === 0 ? "sold-out" : "", title: entry.sku, "data-sku": entry.sku },
    make("span", { class: "available", text: entry.available }),
    line("held"), line("settled"), line("withheld"), make("small", { text: poolWords(entry) }));
}

function table(sale, entries) {
  const names = ["sku", "colour", "size", "price", "allocated", "available", "held", "settled", "withheld", "pools"];
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col", text: text()[name] })));
  const rows = entries.map((entry) => make("tr", { class: entry.available === 0 ? "sold-out" : "", "data-sku": entry.sku },
    make("th", { scope: "row", text: entry.sku }),
    make("td", { class: "text", text: entry.colour || "" }), make("td", { class: "text", text: entry.size || "" }),
    make("td", { text: money(entry.unit_price_minor, sale.currency) }),
    ...["allocated", "available", "held", "settled", "withheld"].map((name) => make("td", { class: name, text: entry[name] })),
    make("td", { class: "text", text: poolWords(entry) })));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function showAll() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text()[element.dataset.text];
  byId("language").textContent = text().language;
  showSales();
  showSale();
}

// --- what people do -------------------------------------------------------------------------------------------------

function choose(saleId) {
  if (saleId !== state.saleId || state.sale === null) {
    Object.assign(state, { saleId, sale: null, readAt: 0, saleProblem: null });
    history.replaceState(null, "", `#${new URLSearchParams({ sale: saleId })}`);
  }
  showSales();
  showSale();
  readSale().then(showSale);
}

byId("language").addEventListener("click", () => {
  state.language = state.language === "zh" ? "en" : "zh";
  localStorage.setItem("language", state.language);
  showAll();
});
byId("sign-out").addEventListener("click", async () => {
  try {
    await fetch("/console/session", { method: "DELETE" });
  } finally {
    location.replace("/console/");
  }
});
byId("more-sales").addEventListener("click", () => {
  state.pages += 1;
  readSales().then(showSales);
});
byId("filter").addEventListener("input", showSale);

showAll();
repeat(readSales, LIST_INTERVAL_MS, showSales);
repeat(readSale, SALE_INTERVAL_MS, showSale);
setInterval(() => { showFreshness(); showMessage(); }, 500);
