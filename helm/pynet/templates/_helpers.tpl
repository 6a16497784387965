{{- define "pynet.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "pynet.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "pynet.name" .) }}
{{- end }}

{{- define "pynet.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "pynet.labels" -}}
app.kubernetes.io/name: pynet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "pynet.selector" -}}
app.kubernetes.io/name: pynet
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The agent's configuration: the user's, with the folders as they are mounted and /proc/sys where it can be written. */}}
{{- define "pynet.config" -}}
{{- $cni := dict "confDir" .Values.hostPaths.cniConf "binDir" .Values.hostPaths.cniBin "ipamDir" (printf "%s/ipam" .Values.hostPaths.run) }}
{{- $ours := dict "cni" $cni "sysctls" (dict "root" "/host/proc/sys") "stateDir" .Values.hostPaths.state "runDir" .Values.hostPaths.run }}
{{- mergeOverwrite $ours (deepCopy .Values.config) | toYaml }}
{{- end }}

{{/* Health is served on loopback, at the port of the configuration. */}}
{{- define "pynet.healthPort" -}}
{{- dig "health" "port" 9794 .Values.config }}
{{- end }}

{{- define "pynet.metricsPort" -}}
{{- dig "metrics" "port" 9793 .Values.config }}
{{- end }}

{{/* What every container of ours may do: nothing beyond the capabilities added. uid 0: capabilities do not reach others. */}}
{{- define "pynet.securityContext" -}}
runAsUser: 0
runAsGroup: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- with .add }}
  add: {{ toJson . }}
{{- end }}
{{- with .root.Values.seLinuxOptions }}
seLinuxOptions: {{ toJson . }}
{{- end }}
{{- end }}

{{- define "pynet.agentCapabilities" -}}
{{- $caps := list "NET_ADMIN" }}
{{- if .Values.netRaw }}{{ $caps = append $caps "NET_RAW" }}{{ end }}
{{- concat $caps .Values.extraCapabilities | uniq | toJson }}
{{- end }}

{{/* Mounts that the agent and the cleanup need alike. */}}
{{- define "pynet.mounts" -}}
- {name: config, mountPath: /etc/pynet, readOnly: true}
- {name: cni-conf, mountPath: {{ .Values.hostPaths.cniConf }}}
- {name: state, mountPath: {{ .Values.hostPaths.state }}}
- {name: run, mountPath: {{ .Values.hostPaths.run }}}
- {name: proc-sys-net, mountPath: /host/proc/sys/net}
{{- if .Values.netRaw }}
- {name: xtables-lock, mountPath: /run/xtables.lock}
{{- end }}
{{- end }}

{{- define "pynet.volumes" -}}
- name: config
  configMap: {name: {{ include "pynet.name" . }}}
- name: cni-conf
  hostPath: {path: {{ .Values.hostPaths.cniConf }}, type: DirectoryOrCreate}
- name: cni-bin
  hostPath: {path: {{ .Values.hostPaths.cniBin }}, type: DirectoryOrCreate}
- name: state
  hostPath: {path: {{ .Values.hostPaths.state }}, type: DirectoryOrCreate}
- name: run
  hostPath: {path: {{ .Values.hostPaths.run }}, type: DirectoryOrCreate}
- name: proc-sys-net
  hostPath: {path: /proc/sys/net, type: Directory}
{{- if .Values.netRaw }}
- name: xtables-lock
  hostPath: {path: /run/xtables.lock, type: FileOrCreate}
{{- end }}
{{- end }}

{{/* What is the same of every pod of ours that works on a node. */}}
{{- define "pynet.nodePod" -}}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
securityContext:
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
nodeSelector: {{ toJson .Values.nodeSelector }}
tolerations: {{ toJson .Values.tolerations }}
{{- with .Values.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- end }}
