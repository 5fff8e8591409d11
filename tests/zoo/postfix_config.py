"""What the Postfix of the tests is told."""

from __future__ import annotations

DOMAIN = "example.org"
TOKEN = "lm_postfix-token"
USER = "lettermint"
REALM = "postfix.test"
SIZE_LIMIT = 1024 * 1024
#: Recipients that the port "bare" takes at once.
RECIPIENT_LIMIT = 20

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = /dev/stdout
# Never used twice, so that they tell one message from another.
enable_long_queue_ids = yes
in_flow_delay = 0

myhostname = {realm}
mydestination =
inet_interfaces = loopback-only
inet_protocols = ipv4
mynetworks = 127.0.0.1/32
message_size_limit = {size_limit}
default_transport = error:5.1.2 nothing leaves this machine
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = regexp:{{{{!/^nobody/ all/}}}}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}

smtpd_tls_chain_files = {root}/config/chain.pem
smtpd_tls_auth_only = yes
smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = {realm}
cyrus_sasl_config_path = {root}/config/sasl
# Say so at MAIL, not at RCPT.
smtpd_delay_reject = no
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_sender_restrictions = check_sender_access inline:{{{{banned@example.org=REJECT}}}}
smtpd_recipient_restrictions =
    check_recipient_access regexp:{{{{/^later/ 450 4.2.0 later}}}}
    reject_unauth_destination
# As strict as it can be with us.
smtpd_data_restrictions = reject_unauth_pipelining
smtpd_forbid_unauth_pipelining = yes
smtpd_forbid_bare_newline = yes
smtpd_forbid_bare_newline_exclusions =
"""

MASTER_CF = """
127.0.0.1:{tls} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
127.0.0.1:{starttls} inet n - n - - smtpd -o smtpd_tls_security_level=encrypt
127.0.0.1:{bare} inet n - n - - smtpd -o smtpd_tls_security_level=encrypt
    -o smtpd_discard_ehlo_keywords=pipelining,size,8bitmime,smtputf8,chunking,dsn
    -o smtpd_recipient_limit={recipient_limit}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
virtual unix - n n - - virtual
error unix - - n - - error
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

SASL_CONF = """
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {root}/config/sasl/sasldb2
mech_list: PLAIN LOGIN
"""
