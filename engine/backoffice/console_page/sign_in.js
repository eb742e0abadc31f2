"use strict";
const language = localStorage.getItem("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
for (const element of document.querySelectorAll("[data-zh]")) element.textContent = element.dataset[language];
const words = {
  401: { zh: "密钥无效或已被吊销", en: "This key is not known here, or is revoked." },
  403: { zh: "此密钥不是运营角色（ops）", en: "This key is not of the role ops." },
  0: { zh: "无法连接服务器", en: "The server cannot be reached." },
};
document.getElementById("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = document.getElementById("key");
  const message = document.getElementById("message");
  let status = 0;
  try {
    // a header can carry visible ASCII only: anything else is no key
    const key = field.value.trim();
    status = /^[\x21-\x7e]+$/.test(key)
      ? (await fetch("/console/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } })).status
      : 401;
  } catch {
    status = 0;
  }
  if (status === 204) {
    field.value = "";
    // the part behind # names a sale, and is kept
    if (location.pathname === "/console/") location.reload();
    else location.replace(`/console/${location.hash}`);
    return;
  }
  message.textContent = words[status] ? words[status][language] : `HTTP ${status}`;
});
